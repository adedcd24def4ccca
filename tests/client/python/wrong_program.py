"""What mypy is to find in a program of a user: one mistake in each line that says so."""

import kvd

client = kvd.Client(7)  # wrong: arg-type
model = client.register("example/8b")  # wrong: arg-type
kvd.Group(16, part_bytes="2MiB")  # wrong: arg-type
hit = client.lookup(model, b"k", leases=30)  # wrong: call-arg
print(hit.blocks + hit.tiers)  # wrong: operator
client.get(model, [b"k"], bytearray(1)).stored  # wrong: attr-defined
client.put(model, "k", bytes(1))  # wrong: arg-type
kvd.PutState.LOST  # wrong: attr-defined
client.load(model, [b"k"]).views()[0].nbytes  # wrong: union-attr
