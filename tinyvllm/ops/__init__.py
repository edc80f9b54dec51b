"""What an op is: its signature and definition, how fused ones are composed, and the table of who serves each."""
