"""What SafeFS sends into a sandbox: programs that run there, never here."""
