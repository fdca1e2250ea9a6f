"""What a checkpoint costs: stall, time to durable, bytes, memory; and what reading one costs."""
