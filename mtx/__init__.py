"""mtx: one gin file takes a mixture of tasks to one trained, routed, evaluated model."""
