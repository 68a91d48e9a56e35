//! The keypair agent's binary: see [`keypair_agent`].

use std::process::ExitCode;

// The C library's allocator loses some 50 bytes a command to fragments: a MiB in 20,000 (`make test-long-life`).
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    keypair_agent::cli::main()
}
