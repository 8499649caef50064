#!/usr/bin/env bash
# A gate for CI: fails the job if FP8 is not at least 1.2 times as fast, or costs more than 1 % in perplexity.
#
# How to run it, on a machine with a GPU and vLLM:
#
#     MODEL=/models/Qwen3-30B-A3B FP8_MODEL=/models/Qwen3-30B-A3B-FP8 examples/ci-gate.sh
#
# As a step of GitHub Actions:
#
#     - run: examples/ci-gate.sh
#       env: {MODEL: /models/Qwen3-30B-A3B, FP8_MODEL: /models/Qwen3-30B-A3B-FP8}
#     - uses: actions/upload-artifact@v4
#       if: always()
#       with: {name: moe-eval, path: moe_eval_run}
#
# Without MODEL the shipped model runs on the CPU, with a gate on quality alone.
set -uo pipefail

OUT=${OUT:-moe_eval_run}
if [ -n "${MODEL:-}" ]; then
    GATE=${GATE:-"speed[b8]>=1.2,ln_ppl<=0.01"}
    moe-eval run --engine vllm --model_path "$MODEL" --fp8_model_path "${FP8_MODEL:?names the FP8 checkpoint}" \
        --precisions bf16,fp8 --batch_size 1,8,32 --loads 4 --output_dir "$OUT" --gate "$GATE"
else
    GATE=${GATE:-"ln_ppl<=0.02"}
    moe-eval run --emulate --precisions bf16,fp8 --evaluators quality --dataset moe_sample --num_chunks 0 \
        --output_dir "$OUT" --gate "$GATE"
fi
code=$?

# 0: every condition holds. 1: one fails. 2: not decided, or something to mend. Decide for yourself what 2 means in your job.
case $code in
    0) echo "gate: holds ($GATE)" ;;
    1) echo "gate: fails ($GATE), see $OUT/report.html" ;;
    2) echo "gate: not decided ($GATE), see $OUT/report.html" ;;
    *) echo "gate: the command ended with exit code $code" ;;
esac
exit $code
