//! Flag > environment > file > default, for every flag of every command alike.
//!
//! The environment and the file are read before clap parses, and what they say becomes the default value of
//! the flag of that name. clap then does the rest: a flag on the command line wins over it, and it is checked
//! by the same rules and with the same messages as a flag.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Command;

use crate::error::UsageError;

/// Every environment variable begins with this; the flag follows in upper case, `-` as `_`.
pub(crate) const ENV_PREFIX: &str = "PONTOON_";

/// Flags that no file and no variable may set: the file cannot name another file, and what kind of help is
/// asked for or whether a parent is watched is a matter of the one call.
const COMMAND_LINE_ONLY: [&str; 4] = ["help", "version", "config", "exit-with-parent"];

/// Where the values of the settings come from; a struct, so that tests need no real environment.
pub(crate) struct Sources<'a> {
    /// The command line without the program's name: only looked through for `--config FILE`.
    pub(crate) args: &'a [OsString],
    /// Looks up an environment variable.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
}

/// One setting that did not come from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    values: Vec<String>,
    /// For messages: `PONTOON_NAME`, or `name in FILE`.
    source: String,
}

/// The command with the environment's and the file's values as its defaults, and for every long flag that got
/// one, where it came from.
///
/// # Errors
/// The file cannot be read, is no TOML, holds a key that is no flag of any command, or a value that is
/// neither a string, a number, a boolean nor a list of these.
pub(crate) fn apply(
    mut command: Command,
    sources: &Sources<'_>,
) -> Result<(Command, BTreeMap<String, String>), UsageError> {
    let mut flags = BTreeSet::new();
    collect_flags(&command, &mut flags);
    let mut settings = match config_file(sources) {
        Some(path) => read_file(&path, &flags)?,
        None => BTreeMap::new(),
    };
    for flag in &flags {
        let variable = format!("{ENV_PREFIX}{}", flag.to_uppercase().replace('-', "_"));
        if let Some(value) = (sources.env)(&variable) {
            settings.insert(flag.clone(), Setting { values: vec![value], source: variable });
        }
    }
    command = set_defaults(command, &settings);
    Ok((command, settings.into_iter().map(|(flag, setting)| (flag, setting.source)).collect()))
}

fn collect_flags(command: &Command, flags: &mut BTreeSet<String>) {
    for long in command.get_arguments().filter_map(|argument| argument.get_long()) {
        if !COMMAND_LINE_ONLY.contains(&long) {
            flags.insert(long.to_owned());
        }
    }
    command.get_subcommands().for_each(|sub| collect_flags(sub, flags));
}

/// The file named by `--config FILE`, `--config=FILE` or `PONTOON_CONFIG`.
fn config_file(sources: &Sources<'_>) -> Option<PathBuf> {
    let mut args = sources.args.iter();
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    (sources.env)(&format!("{ENV_PREFIX}CONFIG")).map(PathBuf::from)
}

fn read_file(path: &Path, flags: &BTreeSet<String>) -> Result<BTreeMap<String, Setting>, UsageError> {
    let file = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        UsageError::new(format!("cannot read the configuration file {file}: {error}; correct --config"))
    })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        let what = error.message().replace('\n', " ");
        UsageError::new(format!("the configuration file {file} is not TOML: line {line}: {what}; correct it"))
    })?;
    let mut settings = BTreeMap::new();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        if !flags.contains(&flag) {
            return Err(UsageError::new(format!(
                "unknown key `{key}` in {file}; a key is a flag's name with `_` for `-`; \
                 see `pontoon help serve` for the flags"
            )));
        }
        let values = match &value {
            toml::Value::Array(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>(),
            one => scalar(one).map(|value| vec![value]),
        };
        let Some(values) = values else {
            return Err(UsageError::new(format!(
                "`{key}` in {file} is a {}; a value is a string, a number, a boolean or a list of these; correct it",
                value.type_str()
            )));
        };
        settings.insert(flag, Setting { values, source: format!("`{key}` in {file}") });
    }
    Ok(settings)
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

fn set_defaults(command: Command, settings: &BTreeMap<String, Setting>) -> Command {
    command
        .mut_args(|argument| {
            let setting = argument.get_long().and_then(|long| settings.get(long));
            match setting {
                Some(setting) => argument.required(false).default_values(setting.values.clone()),
                None => argument,
            }
        })
        .mut_subcommands(|sub| set_defaults(sub, settings))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{Arg, ArgAction};

    use super::*;
    use crate::config::units;

    fn command() -> Command {
        Command::new("pontoon").arg(Arg::new("config").long("config").global(true)).subcommand(
            Command::new("serve")
                .arg(Arg::new("name").long("name"))
                .arg(Arg::new("data_dir").long("data-dir").required(true))
                .arg(Arg::new("dial").long("dial").action(ArgAction::Append).value_delimiter(','))
                .arg(Arg::new("restart").long("restart").action(ArgAction::SetTrue))
                .arg(
                    Arg::new("election_timeout")
                        .long("election-timeout")
                        .default_value("1s")
                        .value_parser(units::election_timeout),
                ),
        )
    }

    /// Parses `serve ARGS` with this environment and this file.
    fn parse(args: &str, env: &[(&str, &str)], file: Option<&str>) -> Result<clap::ArgMatches, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut all: Vec<OsString> = vec!["serve".into()];
        all.extend(args.split_whitespace().map(OsString::from));
        if let Some(text) = file {
            let path = dir.path().join("pontoon.toml");
            std::fs::write(&path, text).expect("a written file");
            all.extend(["--config".into(), path.into()]);
        }
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let (command, _) = apply(command(), &Sources { args: &all, env: &env }).map_err(|e| e.to_string())?;
        let matches = command
            .try_get_matches_from([OsString::from("pontoon")].into_iter().chain(all))
            .map_err(|e| e.to_string())?;
        Ok(matches.subcommand_matches("serve").expect("serve was given").clone())
    }

    fn timeout(matches: &clap::ArgMatches) -> Duration {
        *matches.get_one("election_timeout").expect("it has a default")
    }

    #[test]
    fn flag_over_environment_over_file_over_default() {
        let env = [("PONTOON_ELECTION_TIMEOUT", "3s")];
        let file = Some("election_timeout = \"4s\"");
        let flag = "--data-dir d --election-timeout 2s";
        let seconds = |args, env: &[_], file| timeout(&parse(args, env, file).expect("valid")).as_secs();
        assert_eq!(seconds(flag, &env, file), 2);
        assert_eq!(seconds("--data-dir d", &env, file), 3);
        assert_eq!(seconds("--data-dir d", &[], file), 4);
        assert_eq!(seconds("--data-dir d", &[], None), 1);
    }

    #[test]
    fn a_required_flag_may_come_from_the_environment_or_the_file() {
        let dir = |m: clap::ArgMatches| m.get_one::<String>("data_dir").cloned();
        assert_eq!(dir(parse("", &[("PONTOON_DATA_DIR", "e")], None).expect("valid")).as_deref(), Some("e"));
        assert_eq!(dir(parse("", &[], Some("data_dir = 'f'")).expect("valid")).as_deref(), Some("f"));
        assert!(parse("", &[], None).is_err());
    }

    #[test]
    fn lists_and_switches() {
        let dials =
            |m: &clap::ArgMatches| m.get_many::<String>("dial").expect("given").cloned().collect::<Vec<_>>();
        let matches = parse("", &[], Some("data_dir = 'd'\ndial = ['a=h:1', 'b=h:2']\nrestart = true"));
        let matches = matches.expect("valid");
        assert_eq!(dials(&matches), ["a=h:1", "b=h:2"]);
        assert!(matches.get_flag("restart"));
        let matches = parse("--data-dir d", &[("PONTOON_DIAL", "a=h:1,b=h:2")], None).expect("valid");
        assert_eq!(dials(&matches), ["a=h:1", "b=h:2"]);
        assert!(!matches.get_flag("restart"));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let error = |file| parse("--data-dir d", &[], Some(file)).expect_err(file);
        assert!(error("nmae = 'x'").contains("unknown key `nmae`"));
        assert!(error("config = 'x'").contains("unknown key `config`"));
        assert!(error("name = ").contains("line 1"));
        assert!(error("\n\nname = {a = 1}").contains("is a table"));
        assert!(error("election_timeout = 5").contains("with a unit"));
        let missing = parse("--data-dir d --config /no/such/file", &[], None).expect_err("missing");
        assert!(missing.contains("/no/such/file"), "{missing}");
    }
}
