//! A frame whose bytes the fuzzer chooses arrives from a peer. It may be refused; it may not panic, nor have a count or a length
//! believed, and what passes obeys the rules.
#![no_main]

#[path = "../../crates/transport/tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hostile::exercise(data);
});
