"""The machines of a Ray: getting to them, looking at them, what each worker gets of them."""
