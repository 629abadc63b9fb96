"""What engines share: how a kernel is called, differentiated, compiled and exported."""
