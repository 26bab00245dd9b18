//! End-to-end tests of Cofferdam: harness, fixtures.
