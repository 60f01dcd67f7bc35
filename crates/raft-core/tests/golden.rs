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
