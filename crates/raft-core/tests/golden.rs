//! Golden scripts: small groups driven by commands, with the whole trace written down.
//!
//! Each block of a script is `then`, commands, `----`, and the trace they must give. `REWRITE=1 cargo test --test golden`
//! rewrites the traces; read the diff as carefully as code. `scripts/README.md` says what each shows, `interpreter.rs` lists
//! the commands.

#[path = "golden/interpreter.rs"]
mod interpreter;

use interpreter::Interpreter;

/// The scripts' names, in order.
fn names() -> Vec<String> {
    let files = std::fs::read_dir("tests/scripts").expect("the scripts are there");
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter_map(|name| Some(name.strip_suffix(".txt")?.to_owned())).collect();
    names.sort();
    names
}

#[test]
fn scripts() {
    for name in names() {
        datadriven::walk(&format!("tests/scripts/{name}.txt"), |file| {
            let mut interpreter = Interpreter::default();
            file.run(|case| interpreter.run(&case.input));
        });
    }
}

#[test]
fn the_readme_lists_every_script() {
    let readme = std::fs::read_to_string("tests/scripts/README.md").expect("it is there");
    for name in names() {
        assert!(readme.contains(&format!("[`{name}`]({name}.txt)")), "{name} is not in the README");
    }
    let listed = readme.matches(".txt)").count();
    assert_eq!(listed, names().len(), "the README lists a script that is not there, or one twice");
}

/// Each feature in the crate's README names scripts and files that are there.
#[test]
fn the_features_have_their_scripts() {
    let readme = std::fs::read_to_string("README.md").expect("it is there");
    let names = names();
    let mut features = 0;
    for row in readme.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| feature")) {
        let columns: Vec<_> = row.trim_matches('|').split('|').collect();
        let &[feature, _, files, scripts] = &columns[..] else { panic!("a row of four columns: {row}") };
        let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        for file in quoted(files).iter().filter_map(|name| Some(name.split_once(".rs")?.0.to_owned())) {
            assert!(std::path::Path::new(&format!("src/{file}.rs")).exists(), "{feature}: no {file}.rs");
        }
        for name in quoted(scripts) {
            let here = match name.split_once('*') {
                Some((begin, "")) => names.iter().any(|script| script.starts_with(begin)),
                _ => names.iter().any(|script| script.starts_with(&name)),
            };
            let test = ["survives_anything", "memory.rs"].contains(&&name[..]);
            assert!(here || test, "{feature}: there is no script {name}");
        }
        features += 1;
    }
    assert!(features >= 30, "{features} features");
}
