-- Bars as they were known: every version of a bar is a row of its own, nothing is overwritten.

create table market_data_timeframe (
    timeframe text primary key,
    length interval not null
);

create table market_data (
    symbol text not null,
    timeframe text not null references market_data_timeframe,
    time timestamptz not null check (isfinite(time)),
    open double precision,
    high double precision,
    low double precision,
    close double precision,
    adjusted_close double precision,
    volume double precision,
    real_volume double precision,
    spread double precision,
    known_at timestamptz not null,
    recorded_by xid8 not null default pg_current_xact_id(),
    primary key (symbol, timeframe, time, known_at)
);

-- Lets a reader that remembers a transaction id find what was committed since, however late.
create index market_data_recorded_by on market_data (recorded_by);

comment on table market_data is
    'Append-only bars, stamped by their open in UTC; insert a corrected bar as a new row, known_at is filled in';

create view market_data_latest as
    select distinct on (symbol, timeframe, time) *
    from market_data
    order by symbol, timeframe, time, known_at desc;

create table market_data_quarantine (
    symbol text,
    timeframe text,
    time timestamptz,
    reason text not null,
    source text not null,
    row_content jsonb not null,
    quarantined_at timestamptz not null default clock_timestamp()
);

-- The same rejected row of the same source is kept once, so that a repeated ingest changes nothing.
create unique index market_data_quarantine_content
    on market_data_quarantine (md5(reason || chr(31) || source || chr(31) || row_content::text));

-- A month has no fixed length, so the sum is taken on the UTC calendar, whatever the session's time zone. It is counted
-- from the next day on: a month bar stamped on the evening before the first, by a broker east of UTC, ends with its month.
create function market_data_close(bar_timeframe text, bar_open timestamptz) returns timestamptz
language sql stable as $$
    select (bar_open at time zone 'UTC' + interval '1 day' + length - interval '1 day') at time zone 'UTC'
    from market_data_timeframe where timeframe = bar_timeframe
$$;

-- For programs that insert bars without knowing about revisions: an equal bar is skipped, the first version of a bar
-- counts as known at its close, and a correction counts from its arrival.
create function market_data_fill_known_at() returns trigger
language plpgsql set search_path from current as $$
declare
    previous market_data%rowtype;
    closes timestamptz;
begin
    closes := market_data_close(new.timeframe, new.time);
    select * into previous from market_data
    where symbol = new.symbol and timeframe = new.timeframe and time = new.time
    order by known_at desc limit 1;
    if not found then
        new.known_at := coalesce(closes, new.time);
    elsif (new.open, new.high, new.low, new.close, new.adjusted_close, new.volume, new.real_volume, new.spread)
        is not distinct from
        (previous.open, previous.high, previous.low, previous.close, previous.adjusted_close, previous.volume,
         previous.real_volume, previous.spread) then
        return null;
    else
        new.known_at := greatest(clock_timestamp(), closes, previous.known_at + interval '1 microsecond');
    end if;
    return new;
end
$$;

create trigger market_data_fill_known_at before insert on market_data
    for each row when (new.known_at is null) execute function market_data_fill_known_at();

create function market_data_refuse_change() returns trigger
language plpgsql as $$
begin
    raise exception 'market_data is append-only: insert the corrected bar as a new row instead of % ', tg_op
        using errcode = 'restrict_violation';
end
$$;

create trigger market_data_refuse_change before update or delete or truncate on market_data
    for each statement execute function market_data_refuse_change();
