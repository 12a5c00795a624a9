-- When each row arrived: what was recorded later did not exist as of an earlier instant.

-- One moment per transaction, that of its first bar. Not its start: a transaction may begin, let others read what is
-- recorded so far, and insert afterwards. A reader that waits for the table's writers misses nothing older.
create function market_data_recorded_at() returns timestamptz
language plpgsql as $$
begin
    if coalesce(current_setting('mt5_crs.recorded_at', true), '') = '' then
        perform set_config('mt5_crs.recorded_at',
            to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), true);
    end if;
    return current_setting('mt5_crs.recorded_at')::timestamptz;
end
$$;

-- Rows that are already there count as recorded now; a constant default spares the table a rewrite.
alter table market_data add column recorded_at timestamptz not null default now();
alter table market_data alter column recorded_at set default market_data_recorded_at();

comment on column market_data.recorded_at is 'When the row arrived, the same for a whole transaction; filled in';

create or replace view market_data_latest as
    select distinct on (symbol, timeframe, time) *
    from market_data
    order by symbol, timeframe, time, known_at desc;
