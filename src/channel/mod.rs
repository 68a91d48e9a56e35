//! How commands come and results go, in bytes (contract 3).
