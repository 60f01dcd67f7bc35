//! What stores hold in memory over a stretch of time: by the kernel's books, and by their own.

use std::collections::BTreeMap;
use std::fmt;

use super::MIB;
use super::field::Field;

/// One store's.
#[derive(Debug)]
struct Books {
    store: usize,
    /// Anonymous pages, in bytes.
    first: u64,
    most: u64,
    last: u64,
    /// By purpose, at first and at last.
    purposes: [BTreeMap<String, u64>; 2],
}

/// What some stores held at first, and at most since then.
#[derive(Debug)]
pub(crate) struct Memory(Vec<Books>);

impl Memory {
    pub(crate) async fn of(field: &Field, stores: &[usize]) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for store in stores {
            let (first, books) = (field.memory_bytes(*store)?, field.books(*store).await?);
            all.push(Books {
                store: *store,
                first,
                most: first,
                last: first,
                purposes: [books.clone(), books],
            });
        }
        Ok(Self(all))
    }

    /// Looks again.
    pub(crate) async fn look(&mut self, field: &Field) -> anyhow::Result<()> {
        for books in &mut self.0 {
            books.last = field.memory_bytes(books.store)?;
            books.most = books.most.max(books.last);
            books.purposes[1] = field.books(books.store).await?;
        }
        Ok(())
    }

    /// How far the one that grew most got beyond what it held at first, in bytes.
    pub(crate) fn growth(&self) -> f64 {
        self.0.iter().map(|books| (books.most - books.first) as f64).fold(0.0, f64::max)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, books) in self.0.iter().enumerate() {
            let mib = |bytes: u64| bytes as f64 / MIB;
            let (first, most, last) = (mib(books.first), mib(books.most), mib(books.last));
            let end = if n == 0 { "" } else { "\n" };
            write!(
                f,
                "{end}memory of store {}: {first:.0} MiB, at most {most:.0}, {last:.0} now",
                books.store + 1
            )?;
            let [first, last] = &books.purposes;
            for (purpose, bytes) in last.iter().filter(|(purpose, _)| purpose.ends_with("_bytes")) {
                let (before, now) = (mib(first.get(purpose).copied().unwrap_or(0)), mib(*bytes));
                if (now - before).abs() >= 1.0 || now >= 8.0 {
                    write!(f, "; {purpose} {before:.0} to {now:.0}")?;
                }
            }
        }
        Ok(())
    }
}
