//! The instance metadata service on 169.254.169.254.
