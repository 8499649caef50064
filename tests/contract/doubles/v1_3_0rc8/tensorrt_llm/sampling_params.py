"""SamplingParams under the path it is defined at."""

from ._double import API

SamplingParams = API.SamplingParams
