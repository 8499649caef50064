#!/bin/bash
# Quality of one checkpoint on TensorRT-LLM, on one node or two. Submit it with
#
#   sbatch --nodes=1 examples/slurm-trtllm.sh MODEL
#   sbatch --nodes=2 examples/slurm-trtllm.sh MODEL
#
# It needs Slurm with pyxis, and the image of Dockerfile.trtllm as IMAGE.
#SBATCH --job-name=moe-eval
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=02:00:00
set -euo pipefail

model=${1:?give a checkpoint}
image=${IMAGE:-moe-eval:trtllm}
gpus=$((SLURM_JOB_NUM_NODES * 8))
container=(--container-image="$image" --container-mounts="$PWD:/work" --container-workdir=/work)

# The first thing to run: what of this TensorRT-LLM is not as expected, on one GPU.
srun --nodes=1 --ntasks=1 "${container[@]}" moe-eval doctor --selftest

# One rank for every GPU. The launcher runs the command on the first and keeps the others as workers.
srun --ntasks="$gpus" --mpi=pmix "${container[@]}" trtllm-llmapi-launch \
    lm_eval --model trtllm_moe \
    --model_args "pretrained=$model,tensor_parallel_size=$gpus,max_length=4096,stall_timeout=900" \
    --tasks wikitext --batch_size auto --use_cache "answers-$SLURM_JOB_NUM_NODES"
