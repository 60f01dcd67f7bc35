//! The corpus of the fuzz target (`fuzz/`), replayed, and each of its inputs changed at random a number of times. In a
//! process of its own, whose memory tells whether a length was believed.

mod common;

use std::path::{Path, PathBuf};

use common::format::{self, Group, Marker};
use common::*;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/open")
}

fn inputs() -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = std::fs::read_dir(corpus())
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

/// The most memory this process has had, in bytes.
fn memory_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Good inputs of each kind, for the fuzzer to begin with.
#[test]
#[ignore = "writes the first inputs of the corpus"]
fn write_seeds() {
    let unsealed = |bytes: Vec<u8>| bytes[4..].to_vec();
    let all = Group {
        id: 1,
        create: true,
        hard_state: Some((3, Some((2, 1)))),
        truncate_from: Some(3),
        commit: Some(2),
        entries: Some((3, vec![1, 2, 3])),
    };
    let mut note = vec![0, 2, 3, 0, 0, 0];
    note.extend(b"key\x05\0\0\0value");
    let mut written = Vec::new();
    snapshots(&mut written);
    let pairs = format::cold_base(7, 3);
    let seeds: Vec<(u8, &str, Vec<u8>)> = vec![
        (0, "header", unsealed(format::header(1, 1, 2))),
        (1, "marker", unsealed(Marker::new(7).bytes())),
        (1, "marker-1", unsealed(Marker { format: 1, ..Marker::new(7) }.bytes())),
        (2, "group", format::batch(&[all])),
        (2, "note", note),
        (2, "snapshot", written),
        (
            3,
            "records",
            [format::record(1, 1, &format::batch(&[])), format::record(1, 2, &format::batch(&[]))].concat(),
        ),
        (3, "claims", format::record_claiming(1, 1, b"\0", u32::MAX)),
        (4, "meta", unsealed(format::cold_meta(0, (1, None), (0, 0), (2, 1)))),
        (5, "entry", format::cold_entry(&format::entry(1, 1, 1, b"data"))),
        (6, "tombstone", [&[8, b't'][..], &[0; 7], &[9], &format::sealed(&[1; 24])].concat()),
        (7, "cold", format::cold_tier(pairs)),
        (8, "segment", unsealed(format::segment(1, 7, 1, &[]))[..36].to_vec()),
    ];
    std::fs::create_dir_all(corpus()).unwrap();
    for (kind, name, bytes) in seeds {
        std::fs::write(corpus().join(name), [&[kind][..], &bytes].concat()).unwrap();
    }
}

/// A batch that replaces, compacts and destroys: with snapshots and their configurations.
fn snapshots(out: &mut Vec<u8>) {
    let snapshot = |out: &mut Vec<u8>, index: u64| {
        out.extend(index.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(1000u64.to_le_bytes());
        out.push(0);
        for count in [2u16, 0, 1, 0] {
            out.extend(count.to_le_bytes());
            for n in 0..u64::from(count) {
                out.extend(n.to_le_bytes());
                out.extend(1u64.to_le_bytes());
            }
        }
    };
    out.extend([0, 1]);
    out.extend(1u64.to_le_bytes());
    out.push(0x04 | 0x40 | 0x80);
    snapshot(out, 5);
    snapshot(out, 9);
}

#[test]
fn no_input_panics_or_takes_memory_that_it_claims() {
    let inputs = inputs();
    assert!(inputs.len() >= 13, "{} inputs", inputs.len());
    hostile::exercise(&inputs[0].1);
    let before = memory_max();
    let mut random = Random(1);
    let (mut opened, mut runs) = (0, 0);
    // As many in all, however large the corpus gets.
    let changes = (1500 / inputs.len()).max(1);
    for (name, bytes) in &inputs {
        for n in 0..=changes {
            let mut bytes = bytes.clone();
            for _ in 0..if n == 0 { 0 } else { random.between(1, 4) } {
                // The first byte chooses the kind; it is worth keeping.
                let Some(last) = bytes.len().checked_sub(2) else { break };
                let at = 1 + random.between(0, last as u64) as usize;
                match random.between(0, 4) {
                    0 => bytes[at] ^= 1 << random.between(0, 7),
                    1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.between(0, 4) as usize],
                    2 => bytes.truncate(at),
                    3 => bytes.insert(at, random.next() as u8),
                    // A length that claims everything.
                    _ => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xff),
                }
            }
            runs += 1;
            opened += u64::from(hostile::exercise(&bytes));
            // A claimed length is up to 4 GiB.
            let grown = memory_max() - before;
            assert!(grown < 256 << 20, "{name}: {grown} bytes of memory were taken");
        }
    }
    eprintln!("{runs} inputs, {opened} opened, {} bytes of memory more", memory_max() - before);
    assert!(opened > 10 && opened < runs);
}
