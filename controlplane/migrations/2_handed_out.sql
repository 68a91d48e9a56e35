-- When a command was handed out first, in milliseconds since 1970: after a BAD_SIGNATURE it is kept for an hour from then.
ALTER TABLE commands ADD COLUMN handed_out BIGINT;
