"""Does a lower precision of the expert GEMMs pay, end to end, and what does it cost in quality?"""
