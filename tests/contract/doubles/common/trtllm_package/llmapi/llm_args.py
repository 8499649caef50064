"""The argument classes."""

from .._api import API

KvCacheConfig = API.llm_args["KvCacheConfig"]
CudaGraphConfig = API.llm_args["CudaGraphConfig"]
MoeConfig = API.llm_args["MoeConfig"]
TorchCompileConfig = API.llm_args["TorchCompileConfig"]
TorchLlmArgs = API.llm_args["TorchLlmArgs"]
LlmArgs = API.llm_args["LlmArgs"]
LoadFormat = API.llm_args["LoadFormat"]
StrictBaseModel = API.llm_args["StrictBaseModel"]
