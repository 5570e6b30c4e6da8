"""What a row says of its answers: marks, scores, winners, and which answer is the good one."""
