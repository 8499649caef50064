"""What measures an arm. An evaluator knows no engine and no harness; it returns what goes into a record."""
