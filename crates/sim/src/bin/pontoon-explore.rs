//! Searches all schedules of small groups for one that breaks a property. See `pontoon_sim::explore`.
#![allow(clippy::print_stdout, reason = "a command line program reports on standard output")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use pontoon_sim::explore::{Limits, MODELS, Model, Order, exhaustible, explore, model};

/// Searches all schedules of small groups of the real consensus core for one that breaks a property.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which models; all if none is named.
    models: Vec<String>,
    /// Lists the models and ends.
    #[arg(long)]
    list: bool,
    /// Ends the search of a model after so many states.
    #[arg(long, default_value_t = u64::MAX)]
    states_max: u64,
    /// Ends the search of a model after so many seconds.
    #[arg(long)]
    seconds_max: Option<u64>,
    /// Changes a bound of every model named, for example crashes=2 or term_max=3. May be repeated.
    #[arg(long = "bound", value_name = "NAME=NUMBER")]
    bounds: Vec<String>,
    /// Bounds each model so that it is seen whole, within a minute or so; those that cannot be are left out. Fails if one is not.
    #[arg(long)]
    exhaust: bool,
    /// Which state is looked at next.
    #[arg(long, value_enum, default_value_t = Way::Depth)]
    order: Way,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    /// Shortest counterexamples, much memory.
    Breadth,
    /// Little memory.
    Depth,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for model in MODELS {
            println!("{:<22} {}", model.name, model.about);
        }
        return ExitCode::SUCCESS;
    }
    let mut models: Vec<&Model> = Vec::new();
    for name in &arguments.models {
        let Some(model) = model(name) else {
            eprintln!("pontoon-explore: there is no model {name}; --list names them");
            return ExitCode::from(2);
        };
        models.push(model);
    }
    if models.is_empty() {
        models.extend(MODELS);
    }
    if arguments.exhaust {
        models.retain(|model| exhaustible(model).is_some());
    }
    let limits =
        Limits { states_max: arguments.states_max, time_max: arguments.seconds_max.map(Duration::from_secs) };
    let order = match arguments.order {
        Way::Breadth => Order::Breadth,
        Way::Depth => Order::Depth,
    };
    let (mut states, mut exhausted) = (0, 0);
    let all = models.len();
    for model in models {
        let mut model = if arguments.exhaust { exhaustible(model).unwrap_or(*model) } else { *model };
        for bound in &arguments.bounds {
            if let Err(reason) = set(&mut model, bound) {
                eprintln!("pontoon-explore: {bound}: {reason}");
                return ExitCode::from(2);
            }
        }
        let began = Instant::now();
        match explore(&model, order, limits) {
            Ok(report) => {
                println!("{report} ({:.1} s)", began.elapsed().as_secs_f64());
                states += report.states;
                exhausted += usize::from(report.complete);
            }
            Err(counterexample) => {
                println!("{counterexample}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{states} states in all, {exhausted} of {all} models exhausted, every property holds");
    if arguments.exhaust && exhausted < all { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn set(model: &mut Model, bound: &str) -> Result<(), &'static str> {
    let (name, number) = bound.split_once('=').ok_or("expected NAME=NUMBER")?;
    model.bound(name, number.parse().map_err(|_| "expected a number from 0 to 255")?)
}
