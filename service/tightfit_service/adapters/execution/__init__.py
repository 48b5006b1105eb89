"""Where units of work run: in processes that can be killed."""
