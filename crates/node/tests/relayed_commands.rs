//! Commands that are relayed to a leader elsewhere: one real store between two that follow a script, over real links.

mod support;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pontoon_flow::Class;
use pontoon_node::{Node, NodeConfig, ProposeError};
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Heartbeat, Message};
use pontoon_raft_core::relay::RelayNumber;
use pontoon_raft_core::types::{Entry, EntryId, GroupId, LogIndex, Payload, ReplicaId, StoreId, Term};
use pontoon_storage::LogStore;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_transport::{
    EntrySource, Inbound, ProposalOutcome, ProposalReply, ReceivePermit, Refused, RelayedProposal,
    SnapshotSink, Transport, TransportConfig,
};
use support::{Applied, GROUP, open, options, until};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const CLUSTER: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a store waits before it tries a command again.
const LONG_ENOUGH_TO_TRY_AGAIN: Duration = Duration::from_millis(300);

fn replica(store: u64) -> ReplicaId {
    ReplicaId { store: StoreId(store), number: 1 }
}

/// What a scripted store hears.
#[derive(Debug)]
enum Heard {
    Message(Message),
    Proposal(RelayedProposal),
    Reply(ProposalReply),
}

struct Ears(mpsc::UnboundedSender<Heard>);

impl Inbound for Ears {
    fn receive(&self, _: StoreId, messages: Vec<(GroupId, Message)>, _: ReceivePermit) {
        for (_, message) in messages {
            let _ = self.0.send(Heard::Message(message));
        }
    }
    fn proposals(&self, _: StoreId, proposals: Vec<RelayedProposal>) {
        for proposal in proposals {
            let _ = self.0.send(Heard::Proposal(proposal));
        }
    }
    fn proposal_replies(&self, _: StoreId, replies: Vec<ProposalReply>) {
        for reply in replies {
            let _ = self.0.send(Heard::Reply(reply));
        }
    }
    fn unreachable(&self, _: StoreId, _: Vec<GroupId>) {}
    fn link_down(&self, _: StoreId, _: bool) {}
    fn link_up(&self, _: StoreId) {}
    fn snapshot_begin(&self, _: StoreId, _: GroupId, _: Message) -> Result<Box<dyn SnapshotSink>, Refused> {
        Err(Refused::UnknownReplica)
    }
    fn snapshot_sent(&self, _: StoreId, _: GroupId, _: ReplicaId, _: bool) {}
}

/// The log of a scripted store: entry n is at n - 1.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Entry>>>);

impl EntrySource for Log {
    fn entries(&self, _: GroupId, prev: LogIndex, last: LogIndex, _: Term, _: u64) -> Option<Vec<Entry>> {
        let log = self.0.lock().unwrap();
        log.get(prev.0 as usize..last.0 as usize).map(<[Entry]>::to_vec)
    }
}

/// A store that says what the script says.
struct Scripted {
    id: u64,
    transport: Transport,
    heard: mpsc::UnboundedReceiver<Heard>,
    log: Log,
    server: tokio::task::JoinHandle<()>,
}

impl Scripted {
    fn start(id: u64, listener: TcpListener) -> Self {
        let (ears, heard) = mpsc::unbounded_channel();
        let log = Log::default();
        let transport = Transport::start(
            TransportConfig::new(CLUSTER, StoreId(id), format!("n{id}")),
            Arc::new(Ears(ears)),
            Arc::new(log.clone()),
            tokio::runtime::Handle::current(),
        );
        let server = pontoon_transport::server_builder()
            .add_service(transport.peer_service())
            .serve_with_incoming(pontoon_transport::incoming(listener));
        let server = tokio::spawn(async move {
            let _ = server.await;
        });
        Self { id, transport, heard, log, server }
    }

    fn say(&self, term: u64, body: Body) {
        let message = Message { from: replica(self.id), to: replica(1), term: Term(term), doubt: None, body };
        self.transport.send(StoreId(1), GROUP, message);
    }

    /// "I lead in this term."
    fn heartbeat(&self, term: u64) {
        self.say(
            term,
            Body::Heartbeat(Heartbeat { leader_commit: LogIndex::ZERO, round: 1, quiesce: false }),
        );
    }

    /// Appends one entry to its log, and replicates it, committed, as the leader of a term.
    fn append(&self, term: u64, id: EntryId, payload: Payload) {
        let mut log = self.log.0.lock().unwrap();
        let (prev_log_index, prev_log_term) =
            log.last().map_or((LogIndex::ZERO, Term::ZERO), |e| (e.index, e.term));
        let index = prev_log_index.next();
        log.push(Entry { index, term: Term(term), id, payload });
        drop(log);
        let entries = Entries::Interval { last: index, last_term: Term(term) };
        self.say(
            term,
            Body::AppendEntries(AppendEntries {
                prev_log_index,
                prev_log_term,
                leader_commit: index,
                entries,
            }),
        );
    }

    /// The next thing heard that is wanted; others are passed over.
    async fn hear<T>(&mut self, what: &str, wanted: impl Fn(Heard) -> Option<T>) -> T {
        let hearing = async {
            loop {
                let heard = self.heard.recv().await.expect("the transport runs");
                if let Some(wanted) = wanted(heard) {
                    return wanted;
                }
            }
        };
        let heard = tokio::time::timeout(PATIENCE, hearing).await;
        heard.unwrap_or_else(|_| panic!("store {} did not hear {what}", self.id))
    }

    async fn hear_proposal(&mut self) -> RelayedProposal {
        let wanted = |heard| if let Heard::Proposal(p) = heard { Some(p).filter(|p| !p.asks) } else { None };
        self.hear("a relayed command", wanted).await
    }

    async fn hear_question(&mut self) -> RelayedProposal {
        let wanted = |heard| if let Heard::Proposal(p) = heard { Some(p).filter(|p| p.asks) } else { None };
        self.hear("a question about a relayed command", wanted).await
    }

    async fn hear_reply(&mut self) -> ProposalReply {
        let wanted = |heard| if let Heard::Reply(r) = heard { Some(r) } else { None };
        self.hear("an answer", wanted).await
    }

    fn answer(&self, p: &RelayedProposal, outcome: ProposalOutcome) {
        let (group, id, term, number) = (p.group, p.id, p.term, p.at.number);
        self.transport.send_proposal_reply(StoreId(1), ProposalReply { group, id, term, number, outcome });
    }

    /// Heartbeats from now on, until the task is aborted.
    fn beat(&self, term: u64) -> tokio::task::JoinHandle<()> {
        let (transport, from) = (self.transport.clone(), replica(self.id));
        tokio::spawn(async move {
            for round in 2.. {
                let heartbeat = Heartbeat { leader_commit: LogIndex::ZERO, round, quiesce: false };
                let body = Body::Heartbeat(heartbeat);
                let message = Message { from, to: replica(1), term: Term(term), doubt: None, body };
                transport.send(StoreId(1), GROUP, message);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    }

    /// Answers the candidates that were heard of.
    fn vote_for_anybody(&mut self) {
        while let Ok(heard) = self.heard.try_recv() {
            match heard {
                Heard::Message(Message { term, body: Body::PreVote(_), .. }) => {
                    self.say(term.0, Body::PreVoteReply { granted: true });
                }
                Heard::Message(Message { term, body: Body::RequestVote(_), .. }) => {
                    self.say(term.0, Body::RequestVoteReply { granted: true });
                }
                _ => {}
            }
        }
    }

    /// Says it again and again until the store knows who leads: links come up when they come up.
    async fn lead(&mut self, node: &Node, term: u64) {
        until("a follower", || async {
            self.heartbeat(term);
            (node.leadership(GROUP) == Some((term, Some(StoreId(self.id))))).then_some(())
        })
        .await;
    }
}

struct Scene {
    node: Node,
    server: tokio::task::JoinHandle<()>,
    two: Scripted,
    three: Scripted,
}

impl Scene {
    /// Elections happen when the script says so.
    async fn start(propose_timeout: Duration) -> Self {
        Self::with_timer(propose_timeout, 600_000).await
    }

    async fn with_timer(propose_timeout: Duration, election_timer_ms: u64) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
        }
        let addresses: Vec<_> =
            listeners.iter().map(|l| l.local_addr().expect("bound").to_string()).collect();
        let three = Scripted::start(3, listeners.pop().expect("three"));
        let two = Scripted::start(2, listeners.pop().expect("two"));

        let (log, _) = LogStore::open_on(Arc::new(MemoryDisk::new()), options()).expect("the disk is fine");
        let mut config = NodeConfig::new(StoreId(1));
        config.shards = 1;
        config.election_timer_ms = election_timer_ms;
        config.propose_timeout = propose_timeout;
        let links = TransportConfig::new(CLUSTER, StoreId(1), "n1");
        let node = Node::start(config, 7, log, links).expect("threads");
        let server = pontoon_transport::server_builder()
            .add_service(node.transport().peer_service())
            .serve_with_incoming(pontoon_transport::incoming(listeners.pop().expect("one")));
        let server = tokio::spawn(async move {
            let _ = server.await;
        });
        open(&node, GROUP, &[replica(1), replica(2), replica(3)], &Applied::default()).await;
        for store in [2, 3] {
            node.transport().set_peer(StoreId(store), addresses[store as usize - 1].clone());
        }
        for scripted in [&two, &three] {
            scripted.transport.set_peer(StoreId(1), addresses[0].clone());
        }
        // What is sent while a link is down is lost, and the script says each thing once.
        for transport in [node.transport(), &two.transport, &three.transport] {
            until("the links", || async {
                let links = transport.links();
                (!links.is_empty() && links.iter().all(|link| link.connected)).then_some(())
            })
            .await;
        }
        Self { node, server, two, three }
    }

    fn propose(&self, command: &'static str) -> impl Future<Output = Result<Bytes, ProposeError>> + use<> {
        let node = self.node.clone();
        let task = tokio::spawn(async move { node.propose(GROUP, Bytes::from(command)).await });
        async move { task.await.expect("no panic") }
    }

    async fn stop(self) {
        self.node.shutdown().await;
        self.server.abort();
        for scripted in [self.two, self.three] {
            scripted.transport.shutdown();
            scripted.server.abort();
        }
    }
}

/// The first leader is silent, the second has the command in its log: that the first one refused it is no news.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_to_an_earlier_attempt_starts_no_further_one() {
    let mut scene = Scene::start(PATIENCE).await;
    scene.two.lead(&scene.node, 5).await;
    let answer = scene.propose("command");
    let first = scene.two.hear_proposal().await;
    assert_eq!((first.term, &first.data[..]), (Term(5), &b"command"[..]));

    // An entry of a later term is applied: nothing of term 5 that is not there by now ever will be.
    scene.three.lead(&scene.node, 6).await;
    scene.three.append(6, EntryId::NONE, Payload::Noop);
    let second = scene.three.hear_proposal().await;
    assert_eq!((second.term, second.id, &second.data), (Term(6), first.id, &first.data));

    scene.two.answer(&first, ProposalOutcome::NotLeader { leader: Some(replica(3)) });
    tokio::time::sleep(LONG_ENOUGH_TO_TRY_AGAIN).await;
    scene.three.append(6, second.id, Payload::Command(second.data));
    assert_eq!(answer.await, Ok(Bytes::from("2")), "executed at index 2");
    while let Ok(heard) = scene.three.heard.try_recv() {
        assert!(!matches!(heard, Heard::Proposal(_)), "relayed once more: {heard:?}");
    }
    scene.stop().await;
}

/// "Not the leader" in the very term of the attempt: nothing was appended, so the command goes to the next leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_attempt_itself_is_followed_by_another() {
    let mut scene = Scene::start(PATIENCE).await;
    scene.two.lead(&scene.node, 5).await;
    let answer = scene.propose("command");
    let first = scene.two.hear_proposal().await;
    scene.two.answer(&first, ProposalOutcome::NotLeader { leader: None });
    let again = scene.two.hear_proposal().await;
    assert_eq!((again.term, again.id), (first.term, first.id));
    // The same answer once more is about the first attempt, and the second one is under way.
    scene.two.answer(&first, ProposalOutcome::NotLeader { leader: None });
    tokio::time::sleep(LONG_ENOUGH_TO_TRY_AGAIN).await;
    while let Ok(heard) = scene.two.heard.try_recv() {
        assert!(!matches!(heard, Heard::Proposal(_)), "relayed once more: {heard:?}");
    }
    scene.two.append(5, again.id, Payload::Command(again.data));
    assert_eq!(answer.await, Ok(Bytes::from("1")));
    scene.stop().await;
}

/// A command that was on its way when time ran out may still be executed; one that never was will not.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_learns_whether_the_command_may_still_be_executed() {
    let mut scene = Scene::start(Duration::from_millis(700)).await;
    assert_eq!(scene.propose("nobody leads").await, Err(ProposeError::NoLeader));
    scene.two.lead(&scene.node, 5).await;
    let answer = scene.propose("a silent leader");
    scene.two.hear_proposal().await;
    assert_eq!(answer.await, Err(ProposeError::TimedOut));
    scene.stop().await;
}

/// A leader takes a relayed command only in the term in which it was seen to lead.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_for_an_earlier_leadership_is_refused() {
    let mut scene = Scene::start(PATIENCE).await;
    scene.two.lead(&scene.node, 5).await;
    let term = elect_one(&mut scene).await;
    for (number, wrong) in [(1, 5), (2, term - 1), (3, term + 1)] {
        let command = relayed(Term(wrong), EntryId(99), number, false);
        until("room in the queue", || async {
            scene.two.transport.send_proposal(StoreId(1), command.clone()).ok()
        })
        .await;
        let reply = scene.two.hear_reply().await;
        assert_eq!((reply.id, reply.term), (EntryId(99), Term(wrong)));
        assert!(matches!(reply.outcome, ProposalOutcome::NotLeader { .. }), "{reply:?}");
    }
    scene.stop().await;
}

fn relayed(term: Term, id: EntryId, number: u64, asks: bool) -> RelayedProposal {
    let data = if asks { Bytes::new() } else { Bytes::from(format!("number {number}")) };
    RelayedProposal {
        group: GROUP,
        term,
        id,
        at: RelayNumber { number, floor: 1 },
        asks,
        class: Class::Regular,
        data,
    }
}

/// Store 1 takes over, with the votes of the others. It has to ask again where a link was not up yet. Returns its term.
async fn elect_one(scene: &mut Scene) -> u64 {
    let node = scene.node.clone();
    let electing = async {
        loop {
            node.take_leadership(GROUP).await.expect("a replica is here");
            let asked = tokio::time::Instant::now();
            while asked.elapsed() < LONG_ENOUGH_TO_TRY_AGAIN {
                scene.two.vote_for_anybody();
                scene.three.vote_for_anybody();
                if node.leadership(GROUP).is_some_and(|(_, leader)| leader == Some(StoreId(1))) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, electing).await.expect("elected");
    node.leadership(GROUP).expect("open").0
}

/// A command is lost on the wire, and the leader stays: it is asked, has never seen the command, and gets it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_lost_on_the_wire_is_found_out() {
    let mut scene = Scene::with_timer(PATIENCE, 500).await;
    scene.two.lead(&scene.node, 5).await;
    let beating = scene.two.beat(5);
    let answer = scene.propose("command");
    let lost = scene.two.hear_proposal().await;
    let question = scene.two.hear_question().await;
    assert_eq!((question.id, question.term, question.at.number), (lost.id, lost.term, lost.at.number));
    assert!(question.data.is_empty());
    scene.two.answer(&question, ProposalOutcome::NotLeader { leader: Some(replica(2)) });
    let again = scene.two.hear_proposal().await;
    assert_eq!((again.id, again.term, &again.data), (lost.id, lost.term, &lost.data));
    assert!(again.at.number > lost.at.number && again.at.floor > lost.at.number, "{:?}", again.at);
    scene.two.append(5, again.id, Payload::Command(again.data));
    assert_eq!(answer.await, Ok(Bytes::from("1")));
    beating.abort();
    scene.stop().await;
}

/// As long as the leader says that a command is in progress, its caller waits, however long.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_progress_does_not_time_out() {
    let timeout = Duration::from_millis(700);
    let mut scene = Scene::with_timer(timeout, 400).await;
    scene.two.lead(&scene.node, 5).await;
    let beating = scene.two.beat(5);
    let began = tokio::time::Instant::now();
    let answer = scene.propose("command");
    let command = scene.two.hear_proposal().await;
    while began.elapsed() < 3 * timeout {
        let question = scene.two.hear_question().await;
        scene.two.answer(&question, ProposalOutcome::InProgress);
    }
    scene.two.append(5, command.id, Payload::Command(command.data));
    assert_eq!(answer.await, Ok(Bytes::from("1")));
    beating.abort();
    scene.stop().await;
}

/// A leader that is heard and says nothing of a command is given up after two election timers, not after the whole patience.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_leader_is_given_up_after_two_timers() {
    let mut scene = Scene::with_timer(PATIENCE, 400).await;
    scene.two.lead(&scene.node, 5).await;
    let beating = scene.two.beat(5);
    let began = tokio::time::Instant::now();
    let answer = scene.propose("command");
    scene.two.hear_question().await;
    assert_eq!(answer.await, Err(ProposeError::TimedOut));
    assert!(
        began.elapsed() >= Duration::from_millis(800) && began.elapsed() < PATIENCE,
        "{:?}",
        began.elapsed()
    );
    beating.abort();
    scene.stop().await;
}

/// A leader says of what it took that it is in progress; what it never saw is void from the question on.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_answers_questions_and_takes_nothing_after_a_denial() {
    let mut scene = Scene::start(PATIENCE).await;
    let term = Term(elect_one(&mut scene).await);
    let ask = |scene: &Scene, number, asks| {
        let command = relayed(term, EntryId(90 + u128::from(number)), number, asks);
        scene.two.transport.send_proposal(StoreId(1), command).expect("room in the queue");
    };
    ask(&scene, 1, false);
    ask(&scene, 1, true);
    assert_eq!(scene.two.hear_reply().await.outcome, ProposalOutcome::InProgress);
    for asks in [true, true, false] {
        ask(&scene, 2, asks);
        let reply = scene.two.hear_reply().await;
        assert_eq!((reply.number, reply.id), (2, EntryId(92)));
        assert!(matches!(reply.outcome, ProposalOutcome::NotLeader { .. }), "{reply:?}");
    }
    // Only the first one is in the log, behind the term's own entry.
    let log = scene.node.log().group(GROUP).expect("open").last_index;
    let entries = scene.node.log().entries(GROUP, LogIndex(1)..log.next(), 1 << 20).expect("it is in memory");
    let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [EntryId::NONE, EntryId(91)]);
    scene.stop().await;
}
