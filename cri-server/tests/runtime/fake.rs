//! A fake shim.
