"""SamplingParams under the path it is defined at."""

from ._api import API

SamplingParams = API.SamplingParams
