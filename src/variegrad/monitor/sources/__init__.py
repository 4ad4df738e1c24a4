"""Where M̂² of a step comes from: norms of some examples, or a sign probe; and the check of what arrived."""
