//! `SetFlowControl`: what flow control governs, and its limits, while the store runs.

use pontoon_flow::{FORCED_BYTES_MAX, Limits, Mode, POOL_BYTES_MAX, POOL_BYTES_MIN};
use pontoon_proto::v1 as api;
use tonic::Status;

use super::AdminService;

impl AdminService {
    pub(super) fn set_flow(
        &self,
        request: &api::SetFlowControlRequest,
    ) -> Result<api::SetFlowControlResponse, Status> {
        let view = self.node.flow();
        let (mode, limits) = changed(request, view.mode, view.limits).map_err(Status::invalid_argument)?;
        let before = self.flow();
        self.node.set_flow_limits(limits);
        if mode != view.mode {
            self.node.set_flow_mode(mode);
        }
        tracing::info!(mode = mode.name(), ?limits, "flow control");
        Ok(api::SetFlowControlResponse { before: Some(before), now: Some(self.flow()) })
    }
}

/// What the request makes of these; or the rule that it breaks.
fn changed(
    request: &api::SetFlowControlRequest,
    mode: Mode,
    limits: Limits,
) -> Result<(Mode, Limits), String> {
    let mode = match &request.mode {
        None => mode,
        Some(name) => Mode::named(name)
            .ok_or_else(|| format!("flow control is off, elastic or all, not {name:?}; give one of these"))?,
    };
    let bounded = |what: &str, asked: Option<u64>, present: u64, most: u64| {
        let bytes = asked.unwrap_or(present);
        if asked.is_some() && !(POOL_BYTES_MIN..=most).contains(&bytes) {
            return Err(format!(
                "a {what} limit of {bytes} bytes is out of bounds; {POOL_BYTES_MIN} to {most}; give another"
            ));
        }
        Ok(bytes)
    };
    let limits = Limits {
        regular_bytes: bounded("regular", request.regular_limit_bytes, limits.regular_bytes, POOL_BYTES_MAX)?,
        elastic_bytes: bounded("elastic", request.elastic_limit_bytes, limits.elastic_bytes, POOL_BYTES_MAX)?,
        forced_bytes: bounded("forced", request.forced_limit_bytes, limits.forced_bytes, FORCED_BYTES_MAX)?,
    };
    if limits.elastic_bytes > limits.regular_bytes {
        return Err(format!(
            "the elastic limit of {} bytes is above the regular one of {}; elastic work is to starve first; give less",
            limits.elastic_bytes, limits.regular_bytes
        ));
    }
    Ok((mode, limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_stays_and_what_breaks_a_rule_is_refused() {
        let (mode, limits) = (Mode::ElasticOnly, Limits::default());
        let ask = |request| changed(&request, mode, limits);
        let request = api::SetFlowControlRequest::default();
        assert_eq!(ask(request.clone()), Ok((mode, limits)));
        let all = api::SetFlowControlRequest { mode: Some("all".into()), ..request.clone() };
        assert_eq!(ask(all), Ok((Mode::All, limits)));
        let more = api::SetFlowControlRequest { regular_limit_bytes: Some(32 << 20), ..request.clone() };
        assert_eq!(ask(more), Ok((mode, Limits { regular_bytes: 32 << 20, ..limits })));
        for (request, word) in [
            (
                api::SetFlowControlRequest { mode: Some("some".into()), ..request.clone() },
                "off, elastic or all",
            ),
            (api::SetFlowControlRequest { regular_limit_bytes: Some(1), ..request.clone() }, "out of bounds"),
            (api::SetFlowControlRequest { forced_limit_bytes: Some(1 << 30), ..request.clone() }, "forced"),
            (
                api::SetFlowControlRequest { elastic_limit_bytes: Some(32 << 20), ..request.clone() },
                "give less",
            ),
            (api::SetFlowControlRequest { regular_limit_bytes: Some(4 << 20), ..request }, "starve first"),
        ] {
            let refused = ask(request).expect_err("it breaks a rule");
            assert!(refused.contains(word), "{refused}");
        }
    }
}
