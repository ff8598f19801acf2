"""CD-MoE: the mixture-of-experts layers of a language model condensed into small dense ones (arXiv 2412.00069).

After ``import plait_cdmoe`` transformers' ``AutoModelForCausalLM.from_pretrained`` reads condensed models. The import
itself brings in neither torch nor transformers, so that the plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `search`, `state` | `condense`, `Search`: everything below in order, with a state that survives a kill |
| `families`, `deepseek` | where experts, routers and shared experts are; DeepSeekMoE-16B, which transformers has not |
| `gates`, `experts`, `layers` | constant weights; the choice of experts, fast and slow; the choice of layers |
| `condensed`, `storage` | the dense layer; models that `from_pretrained` loads |
| `distance` | Jensen-Shannon of hidden states, and others |
| `decoder`, `streaming` | a model as a chain of layers, in memory or read from disk one by one |
| `finetuning` | a few steps on the condensed layers' experts |
| `trimming` | what the method is compared with |
| `measures`, `replay` | perplexity, multiple choice, memory, speed; the authors' published searches |
"""

from .registration import announce

__version__ = "0.1.0"

announce()
