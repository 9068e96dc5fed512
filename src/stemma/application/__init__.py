"""One function per question, for commands, pages and Python alike: values in, one answer with its document out."""
