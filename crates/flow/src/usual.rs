//! What a regular command usually takes, and whether it takes longer now: what disturbs it has to give way.

/// Regular commands may take this much longer than usual, in microseconds, and a quarter more: that is noise.
const SLACK_MICROS: u64 = 250;

/// Learns from one stretch of time after the other. See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usual {
    /// In microseconds.
    micros: Option<u64>,
    /// Regular commands were answered in the last stretch.
    had_commands: bool,
}

impl Usual {
    /// A stretch of time is over, in which so many regular commands were answered, which took so long together. `working`: what
    /// could disturb them went on meanwhile. Returns whether it did.
    pub fn judge(&mut self, commands: u64, micros: u64, working: bool) -> bool {
        let mean = micros.checked_div(commands);
        let disturbed = match (mean, self.micros) {
            (Some(mean), Some(usual)) => mean > usual + usual / 4 + SLACK_MICROS,
            (Some(_), None) => false,
            // Those that were there a moment ago may be stuck.
            (None, _) => self.had_commands,
        };
        if let Some(mean) = mean {
            let usual = self.micros.unwrap_or(mean);
            // While the work goes on, what it makes slower must not become usual, unless it stays so for long.
            let weight = if mean > usual && working { 256 } else { 8 };
            self.micros = Some(usual.saturating_add(mean / weight).saturating_sub(usual / weight));
        }
        self.had_commands = commands > 0;
        disturbed
    }
}
