-- Quarto's cross-references for pandoc: number figures, tables and equations, turn @fig-…, @tbl-… and @eq-… into links, and links to
-- notebooks into links to their pages. An unresolved reference is an error.
local names = {fig = 'Figure', tbl = 'Table', eq = 'Equation'}
local counts, labels = {fig = 0, tbl = 0, eq = 0}, {}

local function number(id)
  local kind = names[id:match('^(%a+)%-')] and id:match('^(%a+)%-')
  if not kind then return nil end
  counts[kind] = counts[kind] + 1
  labels[id] = names[kind] .. '\u{a0}' .. counts[kind]
  return labels[id]
end

local function captioned(block)
  local label, first = number(block.identifier), block.caption.long[1]
  -- Typst numbers captions itself, in the same order
  if label and first and FORMAT ~= 'typst' then first.content:insert(1, pandoc.Str(label .. ': ')) end
  return block
end

local function section(header)
  if header.identifier:match('^sec%-') then labels[header.identifier] = pandoc.utils.stringify(header) end
end

local function equation(para)  -- $$ … $$ {#eq-name}
  local math, last = para.content[1], para.content[#para.content]
  local id = last and last.t == 'Str' and last.text:match('^{#(eq%-[%w-]+)}$')
  if not (math and math.t == 'Math' and id) then return nil end
  number(id)
  return pandoc.Div({pandoc.Para({math}), pandoc.Plain({pandoc.Str('(' .. counts.eq .. ')')})}, pandoc.Attr(id, {'equation'}))
end

local function image(i)
  i.attributes.alt, i.attributes['fig-alt'] = i.attributes['fig-alt'] or i.attributes.alt, nil
  return i
end

local function reference(cite)
  local found = pandoc.List()
  for _, c in ipairs(cite.citations) do
    local kind = c.id:match('^(%a+)%-')
    if not (names[kind] or kind == 'sec') then return nil end  -- a citation, for citeproc
    if not labels[c.id] then error('unresolved reference @' .. c.id) end
    if #found > 0 then found:insert(pandoc.Str(', ')) end
    found:insert(pandoc.Link(labels[c.id], '#' .. c.id))
  end
  return found
end

local function link(l)
  local name, place = l.target:match('^([%w_-]+)%.ipynb(#?.*)$')
  if name then l.target = name:lower():gsub('^%d+%w*_', '') .. '.html' .. place end
  return l
end

return {{Figure = captioned, Table = captioned, Header = section, Para = equation, Image = image}, {Cite = reference, Link = link}}
