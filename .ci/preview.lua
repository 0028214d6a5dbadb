-- Quarto's callouts: a heading (or the title) and a body, folded where `collapse` says so.
function Div(div)
  for _, kind in ipairs({"note", "tip", "warning", "important", "caution"}) do
    if div.classes:includes("callout-" .. kind) then
      local title = {pandoc.Str(kind:sub(1, 1):upper() .. kind:sub(2))}
      local first = div.content[1]
      if div.attributes.title then
        title = pandoc.read(div.attributes.title, "markdown").blocks[1].content
      elseif first and first.t == "Header" then
        title = first.content
        div.content:remove(1)
      end
      local head = pandoc.Div(pandoc.Plain(title), {class = "callout-header"})
      local body = pandoc.Div(div.content, {class = "callout-body"})
      local inner = {head, body}
      if div.attributes.collapse then
        local open = div.attributes.collapse == "false" and " open" or ""
        local summary = pandoc.List({pandoc.RawInline("html", "<summary>")})
        summary:extend(title)
        summary:insert(pandoc.RawInline("html", "</summary>"))
        inner = {pandoc.RawBlock("html", "<details" .. open .. ">"), pandoc.Plain(summary), body, pandoc.RawBlock("html", "</details>")}
      end
      return pandoc.Div(inner, {class = "callout callout-" .. kind})
    end
  end
end
