"""What a step asks of a GPU, counted where there is none: launches, waits of the host, bytes."""
