//! How a store ends: on SIGTERM or SIGINT in good order, on a second one at once.

use std::time::Duration;

use pontoon_node::Node;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long leaderships may take to move away. Most move within a round trip; whoever cannot be moved is elected anew.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// Cancels the token at the first SIGTERM or SIGINT and ends the process at the second.
///
/// # Errors
/// The signals cannot be watched.
pub(crate) fn watch_signals(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                tracing::info!(
                    "stops: hands leaderships over and finishes what is in flight; a second signal ends it at once"
                );
                stop.cancel();
            } else {
                std::process::exit(1);
            }
        }
    });
    Ok(())
}

/// Hands leaderships over and waits, within a bound, until none is left here.
pub(crate) async fn hand_over(node: &Node) {
    node.hand_over();
    let moved = async {
        while node.groups_led() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(HAND_OVER_MAX, moved).await.is_err() {
        tracing::warn!(
            groups = node.groups_led(),
            "stops while it still leads groups: no other replica could take them"
        );
    }
}
