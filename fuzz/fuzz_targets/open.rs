//! A log store is opened over a directory whose bytes the fuzzer chooses: header, marker, record, segment, or any part of
//! the cold tier. It may refuse; it may not panic, nor believe a length.
#![no_main]

#[path = "../../crates/storage/tests/common/format.rs"]
mod format;
#[path = "../../crates/storage/tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hostile::exercise(data);
});
