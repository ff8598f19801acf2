"""plait's composed step inside other trainers; each file needs its host, an extra of plait-core of that name."""
