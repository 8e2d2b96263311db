"""Whether a Ray cluster can train: ask every node, judge the answers, say what to do."""
