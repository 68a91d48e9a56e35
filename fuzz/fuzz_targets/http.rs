#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keypair_agent_fuzz::http(bytes));
