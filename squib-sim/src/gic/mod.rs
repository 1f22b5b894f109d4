//! The GICv3 model: distributor, redistributors, CPU interfaces, MSI frame, state blob.
