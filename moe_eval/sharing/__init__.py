"""A run as one file for others: nothing in it tells of the machine's name, its users or its folders."""
