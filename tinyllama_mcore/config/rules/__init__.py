"""Which runs are legal: one file of rules a subject, and the judging by all of them."""
