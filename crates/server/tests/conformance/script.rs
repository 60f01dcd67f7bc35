//! Scripts: requests with the answers that were recorded for them.
//!
//!     # Comments and empty lines stay as they are.
//!     > KV/Put : key: "a" value: "1"
//!     header { revision: 2 }
//!
//! A line that begins with `>` names a service and method of `etcdserverpb` (or with its package) and options; after
//! ` : ` comes the request in protobuf's text format. The answer follows, up to an empty line. Options:
//!
//! - `hide=FIELD,FIELD`: top-level fields of the answer that are different each time.
//! - `keep=NAME`: remembers the token of the answer; `as=NAME`: shows it.
//! - `differs`: Pontoon means to answer otherwise than etcd.
//! - of `Watch/Watch` and `Lease/LeaseKeepAlive`, whose streams stay open under a name: `stream=NAME`, `lines=N` (how
//!   many lines of answers to wait for), `quiet` (nothing more may come), several requests separated by ` ;; `.

use std::fmt;

/// One request.
#[derive(Debug, Default)]
pub(crate) struct Case {
    /// Where it stands, from 1.
    pub(crate) line: usize,
    /// The whole line, without the `>`.
    pub(crate) call: String,
    pub(crate) method: String,
    pub(crate) hidden: Vec<String>,
    pub(crate) differs: bool,
    /// Under which name the token of the answer is remembered.
    pub(crate) keep: String,
    /// The name of the token that is shown.
    pub(crate) token: String,
    pub(crate) stream: String,
    pub(crate) lines: usize,
    pub(crate) quiet: bool,
    pub(crate) requests: Vec<String>,
    /// The recorded answer.
    pub(crate) answer: Vec<String>,
}

#[derive(Debug)]
enum Part {
    Verbatim(String),
    Case(Box<Case>),
}

/// A whole file.
#[derive(Debug)]
pub(crate) struct Script(Vec<Part>);

impl Script {
    /// Reads a file's text; the error names the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let Some(call) = line.strip_prefix("> ") else {
                if !line.is_empty() && !line.starts_with('#') {
                    return Err(format!("line {}: {line:?} belongs to no request", number + 1));
                }
                parts.push(Part::Verbatim(line.to_owned()));
                continue;
            };
            let mut case = parse_call(call).map_err(|why| format!("line {}: {why}", number + 1))?;
            case.line = number + 1;
            while let Some((_, answer)) =
                lines.next_if(|(_, next)| !next.is_empty() && !next.starts_with("> "))
            {
                case.answer.push(answer.to_owned());
            }
            parts.push(Part::Case(Box::new(case)));
        }
        Ok(Self(parts))
    }

    pub(crate) fn cases(&mut self) -> impl Iterator<Item = &mut Case> {
        self.0.iter_mut().filter_map(|part| match part {
            Part::Case(case) => Some(&mut **case),
            Part::Verbatim(_) => None,
        })
    }
}

fn parse_call(call: &str) -> Result<Case, String> {
    let (head, request) = call.split_once(" : ").unwrap_or((call, ""));
    let mut words = head.split_whitespace();
    let method = words.next().ok_or("a request needs a service and a method")?.to_owned();
    let requests = request.split(" ;; ").filter(|text| !text.is_empty()).map(str::to_owned).collect();
    let mut case = Case { call: call.to_owned(), method, requests, ..Case::default() };
    for word in words {
        match word.split_once('=') {
            None if word == "differs" => case.differs = true,
            None if word == "quiet" => case.quiet = true,
            Some(("hide", fields)) => case.hidden = fields.split(',').map(str::to_owned).collect(),
            Some(("keep", name)) => name.clone_into(&mut case.keep),
            Some(("as", name)) => name.clone_into(&mut case.token),
            Some(("stream", name)) => name.clone_into(&mut case.stream),
            Some(("lines", n)) => case.lines = n.parse().map_err(|_| format!("{n:?} is not a number"))?,
            _ => return Err(format!("{word:?} is not an option")),
        }
    }
    Ok(case)
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            match part {
                Part::Verbatim(line) => writeln!(f, "{line}")?,
                Part::Case(case) => {
                    writeln!(f, "> {}", case.call)?;
                    for line in &case.answer {
                        writeln!(f, "{line}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[test]
fn a_script_is_written_as_it_was_read() {
    let text =
        "# c\n\n> KV/Put hide=header : key: \"a\"\nheader {}\n> Watch/Watch stream=x lines=2 : a ;; b\n\n";
    let mut script = Script::parse(text).unwrap();
    assert_eq!(script.to_string(), text);
    let cases: Vec<_> = script.cases().collect();
    assert_eq!((cases[0].line, cases[0].requests.len(), cases[0].answer.len()), (3, 1, 1));
    assert_eq!((cases[1].requests.len(), cases[1].lines, cases[1].stream.as_str()), (2, 2, "x"));
    assert!(Script::parse("header {}\n").is_err());
    assert!(Script::parse("> KV/Put hidden=a\n").is_err());
}
