-- Answers ListObjectsV2 from the listings that benchmarks/nginx.py writes: a file for each series, with a record of the
-- same length for every object, in key order. A page is a slice of the file, so nothing is parsed.

local SERIES_LENGTH, KEY_LENGTH = 36, 77
local KEY_AT = #"<Contents><Key>"

local arguments = ngx.req.get_uri_args()
local prefix = arguments.prefix or ""
local after = arguments["continuation-token"] or arguments["start-after"] or ""
local most = math.min(tonumber(arguments["max-keys"]) or 1000, 1000)

local bucket = ngx.var.uri:match("^/([^/]+)")
local file, width, count = nil, 0, 0
if #prefix >= SERIES_LENGTH then
    file = io.open(ngx.var.document_root .. "/.listings/" .. bucket .. "/" .. prefix:sub(1, SERIES_LENGTH), "rb")
end
if file then
    width = #(file:read("*l") or "") + 1
    count = file:seek("end") / width
end

-- The number of the first record whose key is not less than a text.
local function first_from(text)
    local low, high = 0, count
    while low < high do
        local middle = math.floor((low + high) / 2)
        file:seek("set", middle * width + KEY_AT)
        if file:read(KEY_LENGTH) < text then low = middle + 1 else high = middle end
    end
    return low
end

local start, stop, records, next_token = 0, 0, "", ""
if file then
    -- A token is the last key before the page; all keys end in ".dcm", so none starts with another.
    start = math.max(first_from(prefix), after == "" and 0 or first_from(after .. "\1"))
    local ending = first_from(prefix .. "\255")
    stop = math.max(start, math.min(start + most, ending))
    file:seek("set", start * width)
    records = stop > start and file:read((stop - start) * width) or ""
    if stop < ending then
        local last = records:sub(-width + KEY_AT, -width + KEY_AT + KEY_LENGTH - 1)
        next_token = "<NextContinuationToken>" .. last .. "</NextContinuationToken>"
    end
    file:close()
end

local body = '<?xml version="1.0" encoding="UTF-8"?>\n'
    .. '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>' .. bucket .. "</Name>"
    .. "<Prefix>" .. prefix .. "</Prefix><KeyCount>" .. stop - start .. "</KeyCount><MaxKeys>" .. most .. "</MaxKeys>"
    .. (arguments["encoding-type"] and "<EncodingType>url</EncodingType>" or "")
    .. "<IsTruncated>" .. tostring(next_token ~= "") .. "</IsTruncated>" .. next_token
    .. records .. "</ListBucketResult>"
ngx.header["Content-Type"] = "application/xml"
ngx.header["Content-Length"] = #body
ngx.print(body)
