"""The durable core under a virtual clock, a store with faults and processes that pause and die."""
