import { render } from 'preact'
import './style.css'
import { watchEvents } from './events'
import { begin, watchModels } from './state/begin'
import { keepFocus } from './state/focus'
import { keepInputs } from './state/inputs'
import { App } from './views/app'
import { watchKeys } from './views/keys'

render(<App />, document.getElementById('page')!)
watchKeys()
keepFocus()
watchModels()
void begin().then(() => {
  watchEvents()
  return keepInputs()
})
