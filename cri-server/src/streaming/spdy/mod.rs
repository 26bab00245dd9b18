//! SPDY/3.1, the server side.
