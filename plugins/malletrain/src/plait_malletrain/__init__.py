"""MalleTrain: elastic training on the idle nodes of a cluster (arXiv 2404.15668).

Importing this package imports neither torch nor numpy; the names are in the modules:

| module | what is there |
| --- | --- |
| `allocation` | `allocate`: the exact optimum over counts of nodes |
| `milp` | the same problem for HiGHS: counts, and the literal model of every node |
| `curves`, `profiling` | measured rates and the curve between them; the Job Profiling Advisor |
| `policies` | who decides, and by what it believes: MalleTrain and its rivals |
| `simulation`, `comparison` | the discrete-event simulator, and policies side by side |
| `traces`, `generator`, `workloads` | which nodes are idle when, and what there is to do |
| `options` | the options |
| `manager`, `worker` | real runs as resizable jobs, and the process on each node |
| `launchers`, `channel` | where workers come from; what is said, and how it is signed |
| `trial` | the live trial of the claims |
"""

__version__ = "0.1.0"
