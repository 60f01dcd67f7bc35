//! Pontoon's wire contract: the etcd v3 API, the peer protocol and the admin API.

/// The admin API, `pontoon.v1` (`proto/pontoon/v1/admin.proto`).
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths)]
    #![allow(clippy::all)]
    tonic::include_proto!("pontoon.v1");
}

/// What stores say to each other, `pontoon.peer.v1` (`proto/pontoon/peer/v1/peer.proto`).
pub mod peer {
    /// Version 1.
    pub mod v1 {
        #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths)]
        #![allow(clippy::all)]
        tonic::include_proto!("pontoon.peer.v1");
    }
}

/// The services of the etcd v3 API, `etcdserverpb` (`proto/etcd/etcdserverpb/rpc.proto`). Names and numbers are etcd's.
pub mod etcdserverpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths)]
    #![allow(clippy::all)]
    tonic::include_proto!("etcdserverpb");
}

/// The records of the etcd v3 API, `mvccpb` (`proto/etcd/mvccpb/kv.proto`).
pub mod mvccpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths)]
    #![allow(clippy::all)]
    tonic::include_proto!("mvccpb");
}

/// The users and roles of the etcd v3 API, `authpb` (`proto/etcd/authpb/auth.proto`).
pub mod authpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths)]
    #![allow(clippy::all)]
    tonic::include_proto!("authpb");
}

/// The lock service of the etcd v3 API, `v3lockpb` (`proto/etcd/v3lockpb/lock.proto`).
pub mod v3lockpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths)]
    #![allow(clippy::all)]
    tonic::include_proto!("v3lockpb");
}

/// The election service of the etcd v3 API, `v3electionpb` (`proto/etcd/v3electionpb/election.proto`).
pub mod v3electionpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths)]
    #![allow(clippy::all)]
    tonic::include_proto!("v3electionpb");
}

/// The descriptors of every service and message, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
